//! The userspace side: bhyve and its relatives, one module per personality.
