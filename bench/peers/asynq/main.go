// The peer asynq of bench.peers: `peer ingress PORT` takes payments, `peer worker` pays them.
package main

import (
	"log"
	"os"

	"github.com/hibiken/asynq"
)

const taskType = "payment:pay"

type payment struct {
	CorrelationID string  `json:"correlationId"`
	Amount        float64 `json:"amount"`
}

func main() {
	redis, err := asynq.ParseRedisURI(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal(err)
	}
	switch os.Args[1] {
	case "ingress":
		err = serve(redis, os.Args[2])
	case "worker":
		err = work(redis, os.Getenv("PAYMENT_PROCESSOR_URL_DEFAULT"))
	}
	if err != nil {
		log.Fatal(err)
	}
}
