-- Precedes every script: the keys, the clock, and shared functions.
-- KEYS[1] of every script is the partition's generation. Scripts make their other keys from its hash
-- tag ('' on a single Redis) and from the payments' ids, which begin with the tag.

local TAG = string.match(KEYS[1], '{[^}]*}') or ''
local SUFFIX = TAG == '' and '' or ':' .. TAG
local NOTHING = 'payments:none' .. SUFFIX     -- never exists

if TAG ~= '' then
  -- In a slot that moves to another node, a missing key is the other node's: the script fails here
  -- and not halfway. EXISTS, not DEL, as out of memory Redis lets all go on after a first write.
  redis.call('EXISTS', NOTHING)
  local deployment = redis.call('GET', 'payments:deployment' .. SUFFIX)
  if DEPLOYMENT ~= '' and deployment ~= DEPLOYMENT then
    return redis.error_reply('OTHERDEPLOYMENT ' .. (deployment or ''))
  end
end

local QUEUE = 'arq:queue' .. SUFFIX                       -- zset: payment id by due time (ms)
local OPEN = 'payments:open' .. SUFFIX                    -- zset: unpaid payment id by acceptance (ms)
local IN_FLIGHT = 'payments:in-flight' .. SUFFIX          -- zset: leased payment id by the lease's end (ms)
local DEAD = 'payments:dead' .. SUFFIX                    -- zset: dead letter's id by time (ms)
local DECLINES = 'payments:declines' .. SUFFIX            -- hash: processor -> the number of payments declined
local INCIDENTS = 'payments:incidents' .. SUFFIX          -- list: proofs of payment that match no pin (JSON)
local GENERATION = KEYS[1]                                -- string: the number of purges so far
local CURRENCY = 'payments:currency' .. SUFFIX            -- string: the code of the payments' currency
local PURGING = 'payments:purging' .. SUFFIX              -- string: there while a purge waits for calls to end
local LEFTOVERS = 'payments:leftovers' .. SUFFIX          -- string: there while old records wait for removal
local WAKE = 'payments:wake' .. SUFFIX                    -- list: at most one element, wakes one idle worker
local PAUSED = 'payments:paused' .. SUFFIX                -- string: there while an operator pauses the claims
local SELECTION = TAG == '{selected_payment_processor}' and 'selected_payment_processor'
  or 'selected_payment_processor' .. SUFFIX
local OVERRIDE = 'selection:override' .. SUFFIX           -- string: an operator's choice, until it expires
local FOLDED = 'ledger:folded' .. SUFFIX                  -- hash: width (ms) -> instant (ms); see fold.lua
local WAITING = 'payments:waiting' .. SUFFIX .. ':'       -- zset by processor: payment id by due time; see release.lua
local RESOLVED = 'payments:resolved' .. SUFFIX            -- zset: resolved dead letter's id by time (ms)
local RESOLUTIONS = 'payments:resolutions' .. SUFFIX      -- string: the number of dead letters resolved
local RESOLVED_INCIDENTS = 'payments:incidents:resolved' .. SUFFIX -- zset: incidents (JSON) by resolution (ms)
local AUDIT = 'payments:audit' .. SUFFIX                  -- stream: operators' acts; outlives purges
local HELD = 'payments:held' .. SUFFIX .. ':'             -- zset by processor: payment id by due time; see release.lua
local SAVED = 'payments:saved' .. SUFFIX                  -- hash: 'processor instead' -> cents; see settle.lua
local LEDGER_FULL = 'ledger:full' .. SUFFIX               -- string: there while the ledger's sums are too large
local LEDGER = 'ledger' .. SUFFIX .. ':'                  -- hashes by processor and generation; see settle.lua

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A whole number as text. Redis writes each number of Lua as a float with seventeen digits, which takes
-- it longer than the rest of the argument; most payments of a call share their numbers.
local texts = {}
local function whole(number)
  local text = texts[number]
  if not text then
    text = string.format('%.0f', number)
    if number == number then texts[number] = text end  -- a spoilt record may hold NaN, which is no key
  end
  return text
end

local function generation()
  return redis.call('GET', GENERATION) or '0'
end

-- Out of memory, Redis refuses a script whose first write may need memory. A script that begins with
-- a DEL may go on. Every script but accept and replay must make progress then.
local function write_even_out_of_memory()
  redis.call('DEL', NOTHING)
end

-- A script that fails halfway has done half. So scripts check the types of their keys before they
-- write: another program may have put something else there.
local function demand(kind, ...)
  for _, key in ipairs({ ... }) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      error(key .. ' holds a ' .. found .. ', not a ' .. kind)
    end
  end
end

local function demand_queues()
  demand('zset', QUEUE, OPEN, IN_FLIGHT, DEAD)
  demand('list', INCIDENTS, WAKE)
end

-- The size of a zset; a cheaper `demand` for keys that are counted anyway.
local function size_of(key)
  local size = redis.pcall('ZCARD', key)
  if type(size) == 'table' then demand('zset', key) end
  return size
end

local function wake_a_worker()
  if redis.call('EXISTS', WAKE, PAUSED) == 0 then redis.call('LPUSH', WAKE, '1') end
end

-- Open tries are ids such as '83 27e 61p', in the order in which they were opened. Ids are random,
-- compared as text: as numbers they would lose digits. An e marks a try that has ended at the processor
-- but may have been recorded, a p one that the processor has and will decide. Changes are lists: the ids
-- of closed tries, such as '83,27', and new marks, such as '83e,61p'. A p stays, whatever a worker
-- without the lease brings late, until the processor has decided.
local function changed_tries(open, closed, marked, is_decided)
  if closed == '' and marked == '' then return open end
  local is_closed, marks = {}, {}
  for try in string.gmatch(closed, '%d+') do is_closed[try] = true end
  for try, mark in string.gmatch(marked, '(%d+)(%a)') do marks[try] = mark end
  local left = {}
  for try, mark in string.gmatch(open, '(%d+)(%a?)') do
    if mark == 'p' and not is_decided then
      left[#left + 1] = try .. mark
    elseif not is_closed[try] then
      left[#left + 1] = try .. (marks[try] or mark)
    end
  end
  return table.concat(left, ' ')
end

-- The history of a payment is in its record: field `history` counts its entries, and `history:N` is
-- entry N, a JSON array that begins with an instant (ms) and a kind. The newest entries stay.
local KEPT_OF_HISTORY = 64

-- What can't be written, such as an infinite instant from a spoilt record, is left out: a script must
-- not stop halfway because of it.
local function write_entry(record, number, entry)
  local is_written, text = pcall(cjson.encode, entry)
  if is_written then redis.call('HSET', record, 'history:' .. number, text) end
end

local function remember(record, entry)
  local last = (tonumber(redis.call('HMGET', record, 'history')[1]) or 0) + 1
  redis.call('HSET', record, 'history', last)
  write_entry(record, last, entry)
  redis.call('HDEL', record, 'history:' .. (last - KEPT_OF_HISTORY))
end

-- Tries that were open and that the processor's word has closed: all closed ones but the one just
-- made. `why` is 'missing' (it doesn't have the payment) or 'declined'.
local function remember_closed(record, now, processor, open, closed, own, why)
  local is_closed, count = {}, 0
  for try in string.gmatch(closed, '%d+') do is_closed[try] = true end
  for try in string.gmatch(open, '%d+') do
    if is_closed[try] and try ~= own then count = count + 1 end
  end
  if count > 0 then remember(record, { now, 'closed', processor, count, why }) end
end

-- `tried` is the outcome of a try that did not pay (JSON: id, number, processor, outcome, what became
-- of it), or ''. If the try before ended in the same way, its entry takes this one in. A try that is
-- brought again is not entered again: field `noted` has the id of the last one.
local function remember_tries(record, now, processor, open, closed, tried, why)
  local id, number, at_processor, outcome, fate
  if tried ~= '' then id, number, at_processor, outcome, fate = unpack(cjson.decode(tried)) end
  if closed ~= '' then remember_closed(record, now, processor, open, closed, id, why or 'missing') end
  if not id then return end
  local last, noted = unpack(redis.call('HMGET', record, 'history', 'noted'))
  if noted == id then return end
  redis.call('HSET', record, 'noted', id)
  local read, entry = pcall(cjson.decode, last and redis.call('HMGET', record, 'history:' .. last)[1])
  local is_of_try = read and type(entry) == 'table' and entry[2] == 'tried'
  local latest = is_of_try and (entry[7] or entry[6])
  if latest == number - 1 and entry[3] == at_processor and entry[4] == outcome
    and entry[5] == fate then
    entry[7], entry[8] = number, now
    write_entry(record, last, entry)
  else
    remember(record, { now, 'tried', at_processor, outcome, fate, number })
  end
end

-- When a dead letter is none any more, its death and its resolution leave the record's fields for
-- its history. Returns whether it was resolved.
local function leave_the_dead(id, record)
  local died, reason, resolved, by, how = unpack(redis.call('HMGET', record, 'dead_at', 'reason',
    'resolved_at', 'resolved_by', 'resolution'))
  if tonumber(died) then remember(record, { tonumber(died), 'dead', reason or '' }) end
  if tonumber(resolved) then
    remember(record, { tonumber(resolved), 'resolved', by or '', how or '' })
  end
  redis.call('HDEL', record, 'reason', 'dead_at', 'resolved_at', 'resolved_by', 'resolution')
  redis.call('ZREM', DEAD, id)
  if not resolved then return false end
  redis.pcall('ZREM', RESOLVED, id)
  redis.pcall('INCRBY', RESOLUTIONS, -1)
  return true
end

-- Appends an operator's act to the audit trail. `what` is its object, in words.
local KEPT_ACTS = 10000
local function record_act(act, by, what, reason)
  redis.call('XADD', AUDIT, 'MAXLEN', KEPT_ACTS, '*', 'act', act, 'by', by, 'what', what,
    'reason', reason)
end

-- The payment of a job's id.
local function payment(id)
  return string.sub(id, #TAG + 1)
end

local function these_payments(ids)
  return #ids == 1 and payment(ids[1]) or #ids .. ' payments'
end

-- The longest delay of a processor (ms) with which a record's horizon and quiet time were counted.
-- The record has it with the count of tries at that time. If the count is another by now, an older
-- worker, which doesn't write the delay, opened the last try: then the delay is unknown, and this
-- returns 0.
local function counted_delay(written, tries)
  local delay, count = string.match(written or '', '^(%d+) (%d+)$')
  return delay and count == tries and tonumber(delay) or 0
end

-- The width (ms) of the ledger's entries at an instant: 1, or the width that fold.lua left.
local FOLDED_WIDTHS = { 10000, 1000000 }
local folds
local function grain_at(instant)
  folds = folds or redis.call('HMGET', FOLDED, unpack(FOLDED_WIDTHS))
  for i = #FOLDED_WIDTHS, 1, -1 do
    if folds[i] and instant < tonumber(folds[i]) then return FOLDED_WIDTHS[i] end
  end
  return 1
end

-- Of the payments that wait for one processor, one is due each PACE (ms). release.lua appends to the
-- line, and claim.lua makes the next one due in time. If the queue has another due time than the line,
-- the payment was taken, and its entry in the line is dropped.
local PACE = 500
local function keep_pace(processor, now)
  local key = WAITING .. processor
  for _ = 1, 1000 do
    local first = redis.pcall('ZRANGE', key, 0, 0, 'WITHSCORES')
    if first.err or not first[1] then return end
    if redis.call('ZSCORE', QUEUE, first[1]) == first[2] then
      if tonumber(first[2]) > now + PACE then
        redis.call('ZADD', key, now + PACE, first[1])
        redis.call('ZADD', QUEUE, now + PACE, first[1])
      end
      return
    end
    redis.call('ZREM', key, first[1])
  end
end

-- Makes up to `left` payments of such a zset due now, the longest waiting first; whether there were
-- any. If the queue has another due time, the payment was taken, and its entry is dropped.
local function bring_forward(key, left, now)
  local found = false
  while left > 0 do
    local waiting = redis.pcall('ZPOPMIN', key, left)
    if waiting.err or #waiting == 0 then break end
    for j = 1, #waiting, 2 do
      if redis.call('ZSCORE', QUEUE, waiting[j]) == waiting[j + 1] then
        redis.call('ZADD', QUEUE, 'XX', now, waiting[j])
        found = true
        left = left - 1
      end
    end
  end
  return found
end

local function leave_queue(ids)
  if #ids == 0 then return end
  local keys = {}
  for _, id in ipairs(ids) do
    keys[#keys + 1] = 'arq:job:' .. id
    keys[#keys + 1] = 'arq:in-progress:' .. id
    keys[#keys + 1] = 'arq:retry:' .. id
  end
  redis.call('ZREM', QUEUE, unpack(ids))
  redis.call('ZREM', IN_FLIGHT, unpack(ids))
  redis.call('ZREM', OPEN, unpack(ids))
  redis.call('DEL', unpack(keys))
end
