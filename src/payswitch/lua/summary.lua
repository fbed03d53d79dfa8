-- Summary: the count and the cents of every processor in a window, from the ledger's tree of sums
-- (settle.lua), in one consistent reading. A bound costs at most half a node a level: its entries up to
-- the nearer end of the node are added or taken off. A bound inside a folded entry (fold.lua) moves
-- outwards to that entry's start or end.
--
-- ARGV: first ms ('' for none), last ms, inclusive ('' for none); then the processors
-- Returns: first and last ms of the summed window, as text ('' for none); then for each processor:
--   count, cents above 10^9, cents below 10^9 (together they are exact)

local current = generation()
local billion = 1000000000
local count, high, low

-- The fields of a node, two for each entry; as text, since to make them takes longer than to read a node.
local FIELDS = {
  '0', '0#', '1', '1#', '2', '2#', '3', '3#', '4', '4#', '5', '5#', '6', '6#', '7', '7#',
  '8', '8#', '9', '9#', '10', '10#', '11', '11#', '12', '12#', '13', '13#', '14', '14#',
  '15', '15#', '16', '16#', '17', '17#', '18', '18#', '19', '19#', '20', '20#', '21', '21#',
  '22', '22#', '23', '23#', '24', '24#', '25', '25#', '26', '26#', '27', '27#', '28', '28#',
  '29', '29#', '30', '30#', '31', '31#', '32', '32#', '33', '33#', '34', '34#', '35', '35#',
  '36', '36#', '37', '37#', '38', '38#', '39', '39#', '40', '40#', '41', '41#', '42', '42#',
  '43', '43#', '44', '44#', '45', '45#', '46', '46#', '47', '47#', '48', '48#', '49', '49#',
  '50', '50#', '51', '51#', '52', '52#', '53', '53#', '54', '54#', '55', '55#', '56', '56#',
  '57', '57#', '58', '58#', '59', '59#', '60', '60#', '61', '61#', '62', '62#', '63', '63#',
  '64', '64#', '65', '65#', '66', '66#', '67', '67#', '68', '68#', '69', '69#', '70', '70#',
  '71', '71#', '72', '72#', '73', '73#', '74', '74#', '75', '75#', '76', '76#', '77', '77#',
  '78', '78#', '79', '79#', '80', '80#', '81', '81#', '82', '82#', '83', '83#', '84', '84#',
  '85', '85#', '86', '86#', '87', '87#', '88', '88#', '89', '89#', '90', '90#', '91', '91#',
  '92', '92#', '93', '93#', '94', '94#', '95', '95#', '96', '96#', '97', '97#', '98', '98#',
  '99', '99#',
}
local PLACES = {}
for place, field in ipairs(FIELDS) do PLACES[field] = place end

local function take_count(value, sign)
  count = count + sign * value
end

local function take_cents(value, sign)
  if #value < 10 then
    low = low + sign * value
  else
    high = high + sign * string.sub(value, 1, -10)
    low = low + sign * string.sub(value, -9)
  end
end

-- To find this many entries of a node by their names, Redis takes as long as to read all of them.
local FEW = 15

-- Adds the entries [first, past) of one node; with a sign of -1 it takes them off.
local function take_node(key, first, past, sign)
  local from, to = 2 * first + 1, 2 * past
  if past - first < FEW then
    local values = redis.call('HMGET', key, unpack(FIELDS, from, to))
    for i = 1, #values, 2 do
      if values[i] then take_cents(values[i], sign) end
      if values[i + 1] then take_count(values[i + 1], sign) end
    end
    return
  end
  local values = redis.call('HGETALL', key)
  for i = 1, #values, 2 do
    local place = PLACES[values[i]]
    if place and place >= from and place <= to then
      if place % 2 == 1 then take_cents(values[i + 1], sign) else take_count(values[i + 1], sign) end
    end
  end
end

-- The same of the root, whose few entries may have any number.
local function take_top(key, first, past)
  local values = redis.call('HGETALL', key)
  for i = 1, #values, 2 do
    local entry = tonumber((string.gsub(values[i], '#$', '')))
    if entry and entry >= first and entry < past then
      local take = string.sub(values[i], -1) == '#' and take_count or take_cents
      take(values[i + 1], 1)
    end
  end
end

-- Adds the entries [first, past) of one level, or takes off [past, first); they lie in one node.
local function take_entries(root, width, first, past)
  local sign = 1
  if first > past then first, past, sign = past, first, -1 end
  if first == past then return end
  local node = math.floor(first / 100)
  take_node(root .. string.format('%.0f:%.0f', width, node), first - node * 100, past - node * 100,
    sign)
end

-- A node that lies in the window as a whole is taken as one entry of the level above: below, it may
-- have been folded.
local function take_window(root, first, past)
  local width = 1
  for _ = 1, 5 do
    local is_in_one = math.floor(first / 100) == math.floor((past - 1) / 100)
    if is_in_one and (first % 100 > 0 or past % 100 > 0) then
      return take_entries(root, width, first, past)
    end
    local up, down = math.floor(first / 100 + 0.5), math.floor(past / 100 + 0.5)
    take_entries(root, width, first, up * 100)
    take_entries(root, width, down * 100, past)
    if up == down then return end
    first, past, width = up, down, width * 100
  end
  take_top(root .. 'top', first, past)
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
      take_cents(total[1], 1)
      take_count(total[2], 1)
    end
  elseif not is_empty then
    take_window(root, first, past)
  end
  answer[#answer + 1] = count
  answer[#answer + 1] = high + math.floor(low / billion)
  answer[#answer + 1] = low % billion
end
return answer
