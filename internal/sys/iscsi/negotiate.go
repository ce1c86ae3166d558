package iscsi

import (
	"fmt"
	"strconv"
)

// negotiated is what both sides have agreed on.
type negotiated struct {
	headerDigest, dataDigest bool
	maxSend                  int // bytes of data in a PDU that the target takes
	initialR2T, immediate    bool
	maxBurst, firstBurst     int
	maxR2T                   int
	group                    string // the target's portal group
	statSN                   uint32 // the next that the target will send
}

// What we offer. The limits are those that other initiators for this kernel use.
const (
	maxReceive      = 256 << 10 // bytes of data in a PDU that we take
	offerFirstBurst = 256 << 10
	offerMaxBurst   = 16<<20 - 1024
)

// defaults are the values of keys that were not negotiated: RFC 7143, 13.
func defaults() negotiated {
	return negotiated{maxSend: 8 << 10, initialR2T: true, immediate: true, maxBurst: 256 << 10, firstBurst: 64 << 10, maxR2T: 1}
}

// offer is what we say in the operational stage. It is said once: a target does not understand it a second time.
func (c *Config) offer() []pair {
	return []pair{
		{"HeaderDigest", digestOffer(c.HeaderDigest)},
		{"DataDigest", digestOffer(c.DataDigest)},
		{"MaxRecvDataSegmentLength", strconv.Itoa(maxReceive)},
		{"InitialR2T", "No"},
		{"ImmediateData", "Yes"},
		{"MaxBurstLength", strconv.Itoa(offerMaxBurst)},
		{"FirstBurstLength", strconv.Itoa(offerFirstBurst)},
		{"MaxOutstandingR2T", "1"},
		{"MaxConnections", "1"},
		{"DefaultTime2Wait", "2"},
		{"DefaultTime2Retain", "0"},
		{"DataPDUInOrder", "Yes"},
		{"DataSequenceInOrder", "Yes"},
		{"ErrorRecoveryLevel", "0"},
	}
}

func digestOffer(demand bool) string {
	if demand {
		return "CRC32C"
	}
	return "None,CRC32C"
}

// take reads what the target answers to our offer or declares by itself. known is false for a key that we have nothing to do
// with. What it must not choose is an error.
func (n *negotiated) take(c *Config, p pair) (known bool, err error) {
	if p.value == "Irrelevant" {
		return true, nil // by another answer; what it would have been does not matter
	}
	switch p.key {
	case "HeaderDigest":
		n.headerDigest, err = takeDigest(p, c.HeaderDigest)
	case "DataDigest":
		n.dataDigest, err = takeDigest(p, c.DataDigest)
	case "MaxRecvDataSegmentLength":
		n.maxSend, err = takeNumber(p, 512, 1<<24-1)
	case "InitialR2T":
		n.initialR2T, err = takeBool(p)
	case "ImmediateData":
		n.immediate, err = takeBool(p)
	case "MaxBurstLength":
		n.maxBurst, err = takeNumber(p, 512, offerMaxBurst)
	case "FirstBurstLength":
		n.firstBurst, err = takeNumber(p, 512, offerFirstBurst)
	case "MaxOutstandingR2T":
		n.maxR2T, err = takeNumber(p, 1, 1)
	case "DataPDUInOrder", "DataSequenceInOrder":
		err = takeExactly(p, "Yes")
	case "ErrorRecoveryLevel":
		err = takeExactly(p, "0")
	case "TargetPortalGroupTag":
		n.group = p.value
	case "MaxConnections", "DefaultTime2Wait", "DefaultTime2Retain", "TargetAlias", "TargetAddress":
		// true whatever it says: there is one connection, and a lost one is not continued
	default:
		return false, nil
	}
	return true, err
}

func chooses(p pair) error {
	return fmt.Errorf("the target chooses %s=%.40q, which was not offered", p.key, p.value)
}

func takeDigest(p pair, demanded bool) (bool, error) {
	switch {
	case p.value == "CRC32C":
		return true, nil
	case p.value == "None" && !demanded:
		return false, nil
	case demanded && (p.value == "Reject" || p.value == "None"):
		return false, fmt.Errorf("the target does not offer %s=CRC32C: leave the digest out, or turn it on there", p.key)
	}
	return false, chooses(p)
}

func takeNumber(p pair, low, high int) (int, error) {
	n, err := strconv.ParseInt(p.value, 0, 32)
	if err != nil || int(n) < low || int(n) > high {
		return 0, chooses(p)
	}
	return int(n), nil
}

func takeBool(p pair) (bool, error) {
	if p.value != "Yes" && p.value != "No" {
		return false, chooses(p)
	}
	return p.value == "Yes", nil
}

func takeExactly(p pair, value string) error {
	if p.value != value {
		return chooses(p)
	}
	return nil
}

// settle makes sure that the answers fit together.
func (n *negotiated) settle() {
	n.firstBurst = min(n.firstBurst, n.maxBurst)
}
