package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestOneHolderPerKey(t *testing.T) {
	t.Parallel()
	var locks Locks[int]
	counts := make([]int, 4) // each protected by its key's lock; -race sees a failure
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			unlock, err := locks.Lock(context.Background(), i%4)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			counts[i%4]++
		})
	}
	wg.Wait()
	for key, n := range counts {
		if n != 100 {
			t.Errorf("key %d was counted %d times, want 100", key, n)
		}
	}
	if len(locks.keys) != 0 {
		t.Errorf("%d keys are left over", len(locks.keys))
	}
}

func TestWaiterGivesUp(t *testing.T) {
	t.Parallel()
	var locks Locks[string]
	unlock, err := locks.Lock(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	if _, err := locks.Lock(ctx, "a"); !errors.Is(err, cause) {
		t.Errorf("the waiter got %v, want its context's cause", err)
	}
	unlock()
	unlock()
	if len(locks.keys) != 0 {
		t.Errorf("%d keys are left over", len(locks.keys))
	}
}
