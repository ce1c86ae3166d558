// Package logkey lists the keys of log lines. A key is the same word for the same thing in every line.
package logkey

// The keys, in alphabetical order. Those of errors, objects and durations are the same everywhere.
const (
	Act             = "act"              // call of a driver, such as "up"
	Address         = "address"          // network address of a client
	Authorities     = "authorities"      // file of CA certificates
	Cached          = "cached"           // bytes of an image that are in the cache
	Certificate     = "certificate"      // file, or names in a client certificate
	CGroup          = "cgroup"           // directory of a cgroup
	Class           = "class"            // class of an object
	Client          = "client"           // group: the sender of a request
	Container       = "container"        // ID or name of a container
	Controller      = "controller"       // controller of cgroup v2
	DataDevice      = "data_device"      // device below a verity device
	Delay           = "delay"            // time until a retry
	Device          = "device"           // path of a block device
	Duration        = "duration"         // time that an operation took
	DurationSeconds = "duration_seconds" // the same in the audit log
	Error           = "error"            // cause of a failure
	Image           = "image"            // name of an RBD image
	Kind            = "kind"             // kind of an object
	LUN             = "lun"              // number of a logical unit
	Name            = "name"
	Lost            = "lost" // number of audit records that were not written
	Notification    = "notification"
	Object          = "object"  // ID or name of an attachment, a mount or any object
	Objects         = "objects" // several of them, or their number
	Operation       = "operation"
	Outcome         = "outcome" // of a change
	Panic           = "panic"
	Parameters      = "parameters" // of a request
	Path            = "path"       // file or directory, or place in a definition
	PID             = "pid"
	PIDs            = "pids"
	Processes       = "processes" // names and IDs of processes
	ReadOnly        = "read_only"
	Reason          = "reason"      // why something happened that is no failure
	Remedy          = "remedy"      // command that helps
	Replacement     = "replacement" // ID of the new version of a container
	Request         = "request"
	RunDir          = "run_dir"
	Sink            = "sink"    // of the audit log
	Size            = "size"    // bytes
	Skipped         = "skipped" // number of similar lines that were not written
	Stack           = "stack"
	State           = "state"
	Status          = "status" // HTTP status
	Step            = "step"   // of a replace
	Target          = "target" // name of an iSCSI target
	Timeout         = "timeout"
	Type            = "type" // of an error
	UID             = "uid"
	URL             = "url"
	Version         = "version"
	Warning         = "warning" // text of a warning to a client or an administrator
)
