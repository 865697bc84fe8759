"""Who may do what: tokens and roles of people, certificates of nodes and services, and the audit log."""
