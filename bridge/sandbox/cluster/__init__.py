"""The cluster around the node: API server, scheduler, controllers, as small as its contracts allow."""
