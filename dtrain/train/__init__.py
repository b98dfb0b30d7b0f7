"""The domain: trains, routes and hops, and PHT's bytes. Pure: no network, no environment, no clock."""
