-- Summary: the count and the cents of every processor in a window, from the ledger's tree of sums
-- (settle.lua), in one consistent reading. A window costs at most two partial nodes a level. A bound
-- inside a folded entry (fold.lua) moves outwards to that entry's start or end.
--
-- ARGV: first ms ('' for none), last ms, inclusive ('' for none); then the processors
-- Returns: first and last ms of the summed window, as text ('' for none); then for each processor:
--   count, cents above 10^9, cents below 10^9 (together they are exact)

local current = generation()
local billion = 1000000000
local count, high, low

local function take_cents(cents)
  if #cents < 10 then
    low = low + cents
  else
    high = high + string.sub(cents, 1, -10)
    low = low + string.sub(cents, -9)
  end
end

-- The entry of a field: its number holds the cents, the number and a # the count. Nodes share their
-- small numbers, so each name is parsed once.
local of_cents, of_count = {}, {}
local function learn(field)
  local number = string.match(field, '^(%d+)#$')
  if number then
    of_count[field] = tonumber(number)
  else
    of_cents[field] = tonumber(field)
  end
end

-- Adds the entries [first, past) of one node. It reads all entries, as to ask for many by name takes
-- Redis twice as long.
local function take_node(key, first, past)
  local values = redis.call('HGETALL', key)
  for i = 1, #values, 2 do
    local field = values[i]
    if not (of_cents[field] or of_count[field]) then learn(field) end
    local entry = of_cents[field]
    if entry then
      if entry >= first and entry < past then take_cents(values[i + 1]) end
    else
      entry = of_count[field]
      if entry and entry >= first and entry < past then count = count + values[i + 1] end
    end
  end
end

-- Adds the entries [first, past) of one level; they lie in one node or two.
local function take_entries(root, width, first, past)
  while first < past do
    local node = math.floor(first / 100)
    local past_here = math.min(past, (node + 1) * 100)
    take_node(root .. string.format('%.0f:%.0f', width, node), first - node * 100,
      past_here - node * 100)
    first = past_here
  end
end

local function take_window(root, first, past)
  local width = 1
  for _ = 1, 5 do
    local up, down = math.ceil(first / 100), math.floor(past / 100)
    if up >= down then return take_entries(root, width, first, past) end
    take_entries(root, width, first, up * 100)
    take_entries(root, width, down * 100, past)
    first, past, width = up, down, width * 100
  end
  take_node(root .. 'top', first, past)
end

-- The bounds as numbers, moved outwards where the ledger is coarser: [first, past).
local first = ARGV[1] == '' and 0 or tonumber(ARGV[1])
local past = ARGV[2] == '' and 10000000000000 or tonumber(ARGV[2]) + 1
local is_empty = first >= past
if not is_empty then
  local grain = grain_at(first)
  first = math.floor(first / grain) * grain
  grain = grain_at(past - 1)
  past = math.ceil(past / grain) * grain
end

local answer = {
  ARGV[1] == '' and '' or string.format('%.0f', first),
  ARGV[2] == '' and '' or string.format('%.0f', past - 1),
}
for i = 3, #ARGV do
  count, high, low = 0, 0, 0
  local root = LEDGER .. ARGV[i] .. ':' .. current .. ':'
  if ARGV[1] == '' and ARGV[2] == '' then
    local total = redis.call('HMGET', root .. 'total', 'cents', 'count')
    if total[1] then
      take_cents(total[1])
      count = count + total[2]
    end
  elseif not is_empty then
    take_window(root, first, past)
  end
  answer[#answer + 1] = count
  answer[#answer + 1] = high + math.floor(low / billion)
  answer[#answer + 1] = low % billion
end
return answer
