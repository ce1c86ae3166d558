// Package keep is the keeper of an image that is read on demand: a process beside the daemon that answers the kernel's requests for one
// network block device with bytes from web servers. Packages proc/keeper and proc/companion connect the two.
package keep

import (
	"encoding/json"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/web/access"
	"github.com/kraken-hpc/imageapi/internal/web/source"
)

// Each message has one field in JSON.

// Config is the configuration. It contains secrets.
type Config struct {
	Access    access.Access   `json:"access"`
	Expect    source.Identity `json:"expect"`
	Resume    bool            `json:"resume,omitempty"` // Expect is complete: be ready at once, without a server
	Memory    int64           `json:"memory"`           // for parts of the image, in bytes
	ReadAhead int64           `json:"read_ahead"`
	User      int             `json:"user"` // that the process becomes
}

// Surroundings are files of the node, which the keeper cannot open. They are the content of its first descriptor.
type Surroundings struct {
	Hosts    []byte `json:"hosts,omitempty"`
	Resolver []byte `json:"resolver,omitempty"` // resolv.conf
	Roots    []byte `json:"roots,omitempty"`    // the certificates of the system's authorities, in PEM form
}

// Ready is what the servers have said about the image.
type Ready struct {
	Identity source.Identity `json:"identity"`
	Missing  []string        `json:"missing,omitempty"` // protections that this node does not allow, in words
}

// Failure is why a keeper cannot begin.
type Failure struct {
	Text     string `json:"text"`
	NoRanges bool   `json:"no_ranges,omitempty"` // the servers send whole objects only
	Own      bool   `json:"own,omitempty"`       // it is no server's fault
}

// Status is the state of the work.
type Status struct {
	URL      string `json:"url"`
	Requests int64  `json:"requests"`
	Fetched  int64  `json:"fetched"` // bytes
	Waiting  string `json:"waiting,omitempty"`
	Changed  string `json:"changed,omitempty"` // how the object changed: all reads fail
	Socket   int64  `json:"socket,omitempty"`  // the number of the last socket that was received
	Open     bool   `json:"open,omitempty"`    // the kernel has not closed it
}

// Socket is a message with a socket that the kernel sends requests over, and its number.
const Socket wire.Kind = 's'

// Encode returns a field.
func Encode(v any) (string, error) {
	data, err := json.Marshal(v)
	return string(data), err
}

// Decode reads the field of a message.
func Decode(m wire.Message, v any) error { return json.Unmarshal([]byte(m.Field(0)), v) }
