-- Resolve incidents: an operator has settled a payment's incidents elsewhere. They leave the list of
-- incidents for that of the resolved ones, where each stays for the retention.
--
-- ARGV: retention (ms), who resolves, why; then the payments' ids, without the hash tag
-- Returns for each payment: how many of its incidents were resolved

demand('list', INCIDENTS)
demand('zset', RESOLVED_INCIDENTS)
demand('stream', AUDIT)
write_even_out_of_memory()
local now = now_ms()
local retention, by, why = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local KEPT = 10000
local counts = {}
for i = 4, #ARGV do counts[ARGV[i]] = 0 end

-- One pass for all payments: Redis serves no other client meanwhile.
for _, entry in ipairs(redis.call('LRANGE', INCIDENTS, 0, -1)) do
  local id = string.match(entry, '"correlationId":%s*"([^"]*)"')
  local read, incident = false, nil
  if counts[id or ''] then read, incident = pcall(cjson.decode, entry) end
  if read and type(incident) == 'table' and incident.correlationId == id
    and redis.call('LREM', INCIDENTS, 1, entry) == 1 then
    counts[id] = counts[id] + 1
    incident.resolvedAt, incident.resolvedBy, incident.resolution = now, by, why
    redis.call('ZADD', RESOLVED_INCIDENTS, now, cjson.encode(incident))
  end
end

local answer = {}
for i = 4, #ARGV do
  answer[#answer + 1] = counts[ARGV[i]]
  if counts[ARGV[i]] > 0 then
    record_act('resolve incidents', by, ARGV[i], why)
  end
end
redis.call('ZREMRANGEBYSCORE', RESOLVED_INCIDENTS, '-inf', now - retention)
redis.call('ZREMRANGEBYRANK', RESOLVED_INCIDENTS, 0, -KEPT - 1)
redis.call('PEXPIRE', RESOLVED_INCIDENTS, retention)
return answer
