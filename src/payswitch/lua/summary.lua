-- Summary: the count and the cents of every processor in a window, from the ledger's tree of sums
-- (settle.lua), in one consistent reading. A window costs at most two partial nodes a level.
--
-- ARGV: first ms ('' for none), last ms, inclusive ('' for none); then the processors
-- Returns for each processor: count, cents above 10^9, cents below 10^9 (the sum of both is exact)

local current = generation()
local billion = 1000000000
local count, high, low

local function take(cents, number)
  if cents then
    high = high + tonumber('0' .. string.sub(cents, 1, -10))
    low = low + tonumber(string.sub(cents, -9))
    count = count + tonumber(number)
  end
end

-- Adds the entries from `first` to before `past` of one node. All are read, as asking for many by
-- name takes Redis twice as long.
local function take_node(key, first, past)
  local values = redis.call('HGETALL', key)
  local by_field, wanted = {}, {}
  for i = 1, #values, 2 do
    local field = values[i]
    by_field[field] = values[i + 1]
    local entry = tonumber(field)
    if entry and entry >= first and entry < past then wanted[#wanted + 1] = field end
  end
  for _, field in ipairs(wanted) do take(by_field[field], by_field[field .. '#']) end
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

local answer = {}
for i = 3, #ARGV do
  count, high, low = 0, 0, 0
  local root = 'ledger:' .. ARGV[i] .. ':' .. current .. ':'
  if ARGV[1] == '' and ARGV[2] == '' then
    local total = redis.call('HMGET', root .. 'total', 'cents', 'count')
    take(total[1], total[2])
  else
    local first = ARGV[1] == '' and 0 or tonumber(ARGV[1])
    local past = ARGV[2] == '' and 10000000000000 or tonumber(ARGV[2]) + 1
    if first < past then take_window(root, first, past) end
  end
  answer[#answer + 1] = count
  answer[#answer + 1] = high + math.floor(low / billion)
  answer[#answer + 1] = low % billion
end
return answer
