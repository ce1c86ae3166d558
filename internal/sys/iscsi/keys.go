package iscsi

// The keys of log lines.
const (
	keyDelay  = "delay"  // until a retry
	keyError  = "error"  // cause of a failure
	keyLUN    = "lun"    // number of a logical unit
	keyReason = "reason" // cause of something that is no failure
	keySize   = "size"   // in bytes
	keyTarget = "target" // name of a target
)
