// The sandbox program of the test cluster's pods.
module holdfast.test/programs/pause

go 1.26
