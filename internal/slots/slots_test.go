package slots

import "testing"

func TestSlots(t *testing.T) {
	t.Parallel()
	s := New(2)
	for i, want := range []bool{true, true, false} {
		if got := s.Take("a"); got != want {
			t.Errorf("take %d: %v", i, got)
		}
	}
	if !s.Take("b") {
		t.Error("another client has none")
	}
	s.Give("a")
	if !s.Take("a") || s.Take("a") {
		t.Error("a returned slot is not available exactly once")
	}
	for range 2 {
		s.Give("a")
	}
	s.Give("b")
	if len(s.taken) > 0 {
		t.Errorf("clients that have none are remembered: %v", s.taken)
	}
}

func TestAnyNumber(t *testing.T) {
	t.Parallel()
	s := New(0)
	for range 100 {
		if !s.Take("a") {
			t.Fatal("there is a limit")
		}
	}
}
