"""A server that enhances: `finallyse serve`.

`worker` is the process that runs the network, `jobs` the queue in front of it, `app` what is answered to which request,
`command` starts it all. Uploads and results are files, so that memory does not grow with them.
"""
