// Package crash kills the daemon everywhere: before and after each privileged act of making, using and deleting objects, while
// it recovers what a killed one has left, and at random under load. Each time a new daemon must find every object that was
// promised, whole; nothing of those that were not; and containers that have noticed nothing.
//
// The daemon is this test's own program in another role, with a failpoint that kills it, so that the product holds nothing for this.
package crash
