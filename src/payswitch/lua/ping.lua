-- Ping: changes nothing. Called with a confirmation, it tells whether the replicas are there.
--
-- Returns: PONG

return 'PONG'
