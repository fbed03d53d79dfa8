"""The same service on other queues: BullMQ on Node and asynq on Go, as their manuals say."""
