"""Live view of a router: as a local web page (`run.serve`, `inside.Dashboard`) and in a terminal (`top.run`)."""
