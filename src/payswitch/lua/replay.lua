-- Replay: a dead letter goes back to the backlog and is due now. Its pin and its tries stay. If no
-- try is open, a made-up one stands for the last, ended but perhaps recorded, so that a worker asks its
-- processor before it sends. The deadline starts again. The history keeps the death and the operator's act.
--
-- Like accept, it adds work, so out of memory Redis refuses it before anything is written: its first
-- write may need memory.
--
-- ARGV: who replays, why, '1' to replay resolved ones as well; then for each payment: id, job, the
--   made-up try's id
-- Returns for each payment: 'done', or the reason why not: its state, 'resolved', 'unknown' (or
--   purged), 'broken' (its key holds something else)

demand_queues()
demand('stream', AUDIT)
local now = now_ms()
local current = generation()
local by, why, even_resolved = ARGV[1], ARGV[2], ARGV[3] == '1'
local answer = {}
local by_acceptance, by_time = {}, {}
local dead = {}
local replayed = {}

local function judge(i)
  local id = ARGV[i]
  if dead[id] then return 'queued' end
  local known = redis.pcall('HMGET', 'payment:' .. id, 'generation', 'state', 'accepted_at',
    'processor', 'open', 'cents', 'resolved_at')
  if known.err then return 'broken' end
  if known[1] ~= current then return 'unknown' end
  if known[2] == 'queued' or known[2] == 'processing' or known[2] == 'settled'
    or known[2] == 'declined' then
    return known[2]
  end
  if known[2] ~= 'dead' or not tonumber(known[3]) or not tonumber(known[6]) then
    return 'broken'
  end
  if known[7] and not even_resolved then return 'resolved' end
  local open = known[5] or ''
  if known[4] and open == '' then open = ARGV[i + 2] .. 'e' end
  dead[id] = { open = open, job = ARGV[i + 1] }
  replayed[#replayed + 1] = id
  by_acceptance[#by_acceptance + 1] = known[3]
  by_acceptance[#by_acceptance + 1] = id
  by_time[#by_time + 1] = now
  by_time[#by_time + 1] = id
  return 'done'
end

for i = 4, #ARGV, 3 do answer[#answer + 1] = judge(i) end

if #replayed > 0 then
  redis.call('ZADD', OPEN, unpack(by_acceptance))
  redis.call('ZADD', QUEUE, unpack(by_time))
  wake_a_worker()
  record_act('replay', by, these_payments(replayed), why)
end
for _, id in ipairs(replayed) do
  local record = 'payment:' .. id
  redis.call('DEL', 'arq:in-progress:' .. id, 'arq:retry:' .. id)
  leave_the_dead(id, record)
  remember(record, { now, 'replayed', by, why })
  redis.call('PERSIST', record)
  redis.call('HDEL', record, 'pending_at')
  redis.call('HSET', record, 'state', 'queued', 'replayed_at', now, 'open', dead[id].open)
  redis.call('SET', 'arq:job:' .. id, dead[id].job)
end
return answer
