//! Process shell: logs, metrics, admin endpoints, TLS listener, leases, shutdown.
