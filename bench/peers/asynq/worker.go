package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hibiken/asynq"
)

const (
	// Tasks under way at a time.
	concurrency = 100
	// The worker polls; the default of a second would have it sleep over each short gap.
	taskCheckInterval = 10 * time.Millisecond
)

type processor struct {
	url  string
	http *http.Client
}

// work pays until SIGTERM; by default a task that fails is run again, 25 times at most.
// https://github.com/hibiken/asynq/wiki/Task-Retry
func work(redis asynq.RedisConnOpt, url string) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = concurrency, concurrency
	target := &processor{url + "/payments", &http.Client{Transport: transport, Timeout: 10 * time.Second}}
	server := asynq.NewServer(redis, asynq.Config{
		Concurrency:       concurrency,
		TaskCheckInterval: taskCheckInterval,
		LogLevel:          asynq.WarnLevel,
	})
	mux := asynq.NewServeMux()
	mux.HandleFunc(taskType, target.pay)
	return server.Run(mux)
}

func (p *processor) pay(ctx context.Context, task *asynq.Task) error {
	body, err := request(task)
	if err != nil {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	call.Header.Set("Content-Type", "application/json")
	response, err := p.http.Do(call)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// A connection is used again only after its body was read.
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("the processor answered %d", response.StatusCode)
	}
	return nil
}

func request(task *asynq.Task) ([]byte, error) {
	var body struct {
		payment
		RequestedAt string `json:"requestedAt"`
	}
	if err := json.Unmarshal(task.Payload(), &body.payment); err != nil {
		return nil, err
	}
	body.RequestedAt = time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00")
	return json.Marshal(body)
}
