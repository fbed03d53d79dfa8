-- Resolve incidents: an operator has settled a payment's incidents elsewhere. They leave the list of
-- incidents for that of the resolved ones, where each stays for the retention.
--
-- ARGV: retention (ms), who resolves, why; then the payments' ids
-- Returns for each payment: how many of its incidents were resolved

demand('list', INCIDENTS)
demand('zset', RESOLVED_INCIDENTS)
demand('stream', AUDIT)
write_even_out_of_memory()
local now = now_ms()
local retention, by, why = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local KEPT = 10000
local entries = redis.call('LRANGE', INCIDENTS, 0, -1)
local answer = {}

local function resolve(id)
  local count = 0
  for _, entry in ipairs(entries) do
    local read, incident = false, nil
    if string.find(entry, id, 1, true) then read, incident = pcall(cjson.decode, entry) end
    if read and type(incident) == 'table' and incident.correlationId == id
      and redis.call('LREM', INCIDENTS, 1, entry) == 1 then
      count = count + 1
      incident.resolvedAt, incident.resolvedBy, incident.resolution = now, by, why
      redis.call('ZADD', RESOLVED_INCIDENTS, now, cjson.encode(incident))
    end
  end
  if count > 0 then record_act('resolve incidents', by, these_payments({ id }), why) end
  return count
end

for i = 4, #ARGV do answer[#answer + 1] = resolve(ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', RESOLVED_INCIDENTS, '-inf', now - retention)
redis.call('ZREMRANGEBYRANK', RESOLVED_INCIDENTS, 0, -KEPT - 1)
redis.call('PEXPIRE', RESOLVED_INCIDENTS, retention)
return answer
