"""The durable queue: jobs, leases, uploads, webhooks."""
