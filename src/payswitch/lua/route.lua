-- Route: opens a try before anything is sent. If another try is open, the pin stays (processor and
-- requestedAt); if none is, the payment is pinned to the given processor now. No try is opened for a
-- payment that a processor has pending or has declined, even if the holder of the lease doesn't know
-- that yet. Horizon and quiet time use the longest delay that this worker or an earlier one knew.
--
-- ARGV: the longest delay of a processor (ms), the lease (ms); then for each payment: id, token,
--   generation, processor, closed tries, marked tries, the new try's id
-- Returns for each payment: { processor, requested_at (ms), the number of the try }, or nil if it may
--   not be sent

write_even_out_of_memory()
local now = now_ms()
local max_delay, lease = tonumber(ARGV[1]), tonumber(ARGV[2])
local current = generation()
local answer = {}

local function is_pending_or_declined(known)
  return string.find(known[5] or '', 'p', 1, true) or known[11]
end

-- Whether the fields that the next step reads are sound; checked before the first write.
local function is_sound(known)
  local has_numbers = tonumber(known[6] or '0') and tonumber(known[7]) and tonumber(known[8] or '0')
    and tonumber(known[9] or '0')
  return has_numbers and ((known[5] or '') == '' or known[3] and tonumber(known[4]))
end

for i = 3, #ARGV, 7 do
  local id, token, of, processor = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local record = 'payment:' .. id
  local known = redis.pcall('HMGET', record, 'generation', 'token', 'processor', 'requested_at',
    'open', 'tries', 'lease_until', 'horizon', 'quiet', 'delay', 'declined')
  if known.err or not is_sound(known) or known[1] ~= current
    or of ~= current or known[2] ~= token or is_pending_or_declined(known) then
    answer[#answer + 1] = false
  else
    local open = changed_tries(known[5] or '', ARGV[i + 4], ARGV[i + 5])
    remember_tries(record, now, known[3] or '', known[5] or '', ARGV[i + 4], '')
    local requested_at
    if open == '' then
      requested_at = whole(now)
    else
      processor, requested_at = known[3], known[4]
      open = open .. ' '
    end
    local tries = tonumber(known[6] or '0') + 1
    local counted = counted_delay(known[10], known[6])
    local delay = math.max(max_delay, counted)
    local later = delay - counted
    local horizon = math.max(tonumber(known[8] or '0') + later, tonumber(known[7]) + delay)
    local quiet = math.max(tonumber(known[9] or '0') + later, lease + delay)
    redis.call('HSET', record, 'processor', processor, 'requested_at', requested_at,
      'open', open .. ARGV[i + 6], 'tries', whole(tries), 'horizon', whole(horizon),
      'quiet', whole(quiet), 'delay', delay .. ' ' .. tries)
    answer[#answer + 1] = { processor, requested_at, tries }
  end
end
return answer
