package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
)

// As long as Payswitch keeps a settled payment: until then the same id is not queued again.
// https://github.com/hibiken/asynq/wiki/Unique-Tasks, https://github.com/hibiken/asynq/wiki/Task-Retention-and-Result
const kept = 7 * 24 * time.Hour

type ingress struct {
	client *asynq.Client
}

// serve answers POST /payments, with one client for all requests.
// https://github.com/hibiken/asynq/wiki/Getting-Started
func serve(redis asynq.RedisConnOpt, port string) error {
	client := asynq.NewClient(redis)
	defer client.Close()
	mux := http.NewServeMux()
	mux.Handle("POST /payments", &ingress{client})
	return http.ListenAndServe(net.JoinHostPort("127.0.0.1", port), mux)
}

func (i *ingress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var p payment
	err := json.NewDecoder(r.Body).Decode(&p)
	if err != nil || uuid.Validate(p.CorrelationID) != nil || p.Amount <= 0 {
		answer(w, http.StatusUnprocessableEntity, "not a payment")
		return
	}
	if err := i.enqueue(r, p); err != nil {
		answer(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	answer(w, http.StatusAccepted, "queued")
}

func (i *ingress) enqueue(r *http.Request, p payment) error {
	payload, err := json.Marshal(p)
	if err != nil {
		return err
	}
	task := asynq.NewTask(taskType, payload, asynq.TaskID(p.CorrelationID), asynq.Retention(kept))
	_, err = i.client.EnqueueContext(r.Context(), task)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		return nil // it is queued or paid already
	}
	return err
}

func answer(w http.ResponseWriter, status int, said string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"status": said})
}
