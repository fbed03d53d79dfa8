-- Resolve: an operator has settled a dead letter's matter elsewhere. It stays dead and leaves the
-- list of dead letters for that of the resolved ones. Its record expires after the retention. A dead
-- letter without a sound record only leaves the list.
--
-- ARGV: retention (ms), who resolves, why; then the payments' ids
-- Returns for each payment: 'done', or the reason why not: its state, 'resolved' (before), 'unknown'
--   (or purged), 'broken' (its key holds something else)

demand_queues()
demand('zset', RESOLVED)
demand('stream', AUDIT)
write_even_out_of_memory()
local now = now_ms()
local current = generation()
local retention, by, why = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local answer = {}
local resolved = {}

local function leave_the_list(id, otherwise)
  if redis.call('ZREM', DEAD, id) == 0 then return otherwise end
  resolved[#resolved + 1] = id
  return 'done'
end

local function resolve(id)
  local record = 'payment:' .. id
  local known = redis.pcall('HMGET', record, 'generation', 'state', 'resolved_at')
  if known.err then return leave_the_list(id, 'broken') end
  if known[1] ~= current then return leave_the_list(id, 'unknown') end
  if known[2] == 'queued' or known[2] == 'processing' or known[2] == 'settled'
    or known[2] == 'declined' then
    return known[2]
  end
  if known[2] ~= 'dead' then return leave_the_list(id, 'broken') end
  if known[3] then return 'resolved' end
  redis.call('HSET', record, 'resolved_at', now, 'resolved_by', by, 'resolution', why)
  redis.call('PEXPIRE', record, retention)
  redis.call('ZADD', RESOLVED, now, id)
  redis.call('ZREM', DEAD, id)
  resolved[#resolved + 1] = id
  return 'done'
end

for i = 4, #ARGV do answer[#answer + 1] = resolve(ARGV[i]) end
if #resolved > 0 then
  redis.pcall('INCRBY', RESOLUTIONS, #resolved)
  record_act('resolve', by, these_payments(resolved), why)
end
redis.call('ZREMRANGEBYSCORE', RESOLVED, '-inf', now - retention)
redis.call('PEXPIRE', RESOLVED, retention)
return answer
