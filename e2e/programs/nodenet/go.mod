// The network plug-in of the test cluster.
module holdfast.test/programs/nodenet

go 1.26
