// The program inside the images that tests deploy.
module holdfast.test/programs/workload

go 1.26
