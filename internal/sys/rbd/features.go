package rbd

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// featureNames are the features of images by their bit, as rbd(8) calls them.
var featureNames = [...]string{
	"layering", "striping", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "journaling", "data-pool",
	"operations", "migrating", "non-primary", "dirty-cache",
}

// FeatureNames names the features in a set.
func FeatureNames(set uint64) string {
	var names []string
	for ; set != 0; set &= set - 1 {
		bit := bits.TrailingZeros64(set)
		name := fmt.Sprintf("feature %d", bit)
		if bit < len(featureNames) {
			name = featureNames[bit]
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// Features returns the set of features that images may have for this kernel to map them.
func (b *Bus) Features() (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "supported_features"))
	if err != nil {
		return 0, fmt.Errorf("ask the kernel for the features it knows: %w", err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 0, 64)
}
