"""HTTP as our servers speak it: one way to listen, on a web server that nodes of a cluster need not have."""
