package metrics

import (
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// value is a metric of one series without labels.
type value struct {
	name, help string
	kind       kind
	now        float64
}

func writeValues(w io.Writer, all []value) {
	for _, v := range all {
		header(w, v.name, v.help, v.kind)
		sample(w, v.name, "", v.now)
	}
}

// writeGo tells of the Go runtime, by the names that Prometheus's own library has for it.
func writeGo(w io.Writer) {
	var gc debug.GCStats
	gc.PauseQuantiles = make([]time.Duration, 5)
	debug.ReadGCStats(&gc)
	const pauses = "go_gc_duration_seconds"
	header(w, pauses, "Pauses of the garbage collector.", summary)
	for i, pause := range gc.PauseQuantiles {
		sample(w, pauses, pairs([]string{"quantile"}, []string{number(float64(i) / 4)}), pause.Seconds())
	}
	sample(w, pauses+"_sum", "", gc.PauseTotal.Seconds())
	sample(w, pauses+"_count", "", float64(gc.NumGC))
	header(w, "go_info", "The version of Go.", gauge)
	sample(w, "go_info", pairs([]string{"version"}, []string{runtime.Version()}), 1)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	writeValues(w, []value{
		{"go_goroutines", "Goroutines that there are.", gauge, float64(runtime.NumGoroutine())},
		{"go_memstats_alloc_bytes", "Bytes of the heap that are in use.", gauge, float64(m.Alloc)},
		{"go_memstats_alloc_bytes_total", "Bytes that were ever taken from the heap.", counter, float64(m.TotalAlloc)},
		{"go_memstats_frees_total", "Objects that were freed.", counter, float64(m.Frees)},
		{"go_memstats_heap_idle_bytes", "Bytes of the heap that are not in use.", gauge, float64(m.HeapIdle)},
		{"go_memstats_heap_inuse_bytes", "Bytes of parts of the heap that are in use.", gauge, float64(m.HeapInuse)},
		{"go_memstats_heap_objects", "Objects that there are.", gauge, float64(m.HeapObjects)},
		{"go_memstats_heap_released_bytes", "Bytes of the heap that the kernel has back.", gauge, float64(m.HeapReleased)},
		{"go_memstats_heap_sys_bytes", "Bytes of the heap.", gauge, float64(m.HeapSys)},
		{"go_memstats_last_gc_time_seconds", "When the garbage was last collected, in seconds since 1970.", gauge, float64(m.LastGC) / 1e9},
		{"go_memstats_mallocs_total", "Objects that were ever made.", counter, float64(m.Mallocs)},
		{"go_memstats_next_gc_bytes", "How large the heap is when its garbage is collected the next time.", gauge, float64(m.NextGC)},
		{"go_memstats_stack_inuse_bytes", "Bytes of stacks.", gauge, float64(m.StackInuse)},
		{"go_memstats_sys_bytes", "Bytes that the runtime has from the kernel.", gauge, float64(m.Sys)},
		{"go_threads", "Threads that were made.", gauge, float64(pprof.Lookup("threadcreate").Count())},
	})
}

// writeProcess tells of the process, by the usual names. What can't be read is left out.
func (m *Metrics) writeProcess(w io.Writer) {
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		spent := time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
		writeValues(w, []value{{"process_cpu_seconds_total", "Processor time that was spent.", counter, spent}})
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		writeValues(w, []value{{"process_max_fds", "Descriptors that may be open.", gauge, float64(limit.Cur)}})
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		writeValues(w, []value{{"process_open_fds", "Descriptors that are open.", gauge, float64(len(open) - 1)}}) // but for that of the look
	}
	if pages := statm(); len(pages) > 1 {
		writeValues(w, []value{
			{"process_resident_memory_bytes", "Memory that is there.", gauge, pages[1]},
			{"process_virtual_memory_bytes", "Memory that has addresses.", gauge, pages[0]},
		})
	}
	writeValues(w, []value{{"process_start_time_seconds", "When it was started, in seconds since 1970.", gauge, float64(m.start.UnixMilli()) / 1e3}})
}

// statm reads the sizes in /proc/self/statm, in bytes.
func statm() (sizes []float64) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return nil
	}
	for _, field := range strings.Fields(string(text)) {
		pages, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil
		}
		sizes = append(sizes, float64(pages*int64(os.Getpagesize())))
	}
	return sizes
}
