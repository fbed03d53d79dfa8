-- Fold: one step. An old span of the ledger loses its finest nodes. The entries above already have
-- their sums (settle.lua), so no total changes. FOLDED has, for each width, the instant before which
-- no finer node exists. Late payments keep to it (settle.lua), and the bounds of a window move to
-- whole entries (summary.lua).
--
-- ARGV: the age (ms) from which entries of 10 s are enough, the one from which those of 1,000 s
--   are; then the processors
-- Returns: 1 while there is more to fold

write_even_out_of_memory()
local TOP = 10000000000
local now = now_ms()
local current = generation()

local function root_of(processor)
  return LEDGER .. processor .. ':' .. current .. ':'
end

-- The first entry of a level, from `index` on, of any processor; nil if there is none.
local function next_here(width, index)
  local above = math.floor(index / 100)
  local name = width == TOP and 'top' or string.format('%.0f:%.0f', width, above)
  local base = width == TOP and 0 or above * 100
  local nearest
  for i = 3, #ARGV do
    local fields = redis.pcall('HGETALL', root_of(ARGV[i]) .. name)
    for j = 1, #fields, 2 do
      local entry = tonumber(fields[j]) and base + tonumber(fields[j])
      if entry and entry >= index and (not nearest or entry < nearest) then nearest = entry end
    end
  end
  return nearest
end

-- The same, also beyond the node of `index`.
local function next_entry(width, index)
  local here = next_here(width, index)
  if here or width == TOP then return here end
  local above = next_entry(width * 100, math.floor(index / 100) + 1)
  return above and (next_here(width, above * 100) or above * 100)
end

-- Folds the next entry of `width` that begins before `limit`; whether there may be more.
local function fold(width, from, limit, names_below)
  limit = math.floor(limit / width) * width
  if from >= limit then return false end
  local entry = next_entry(width, from / width)
  if not entry or entry * width >= limit then
    redis.call('HSET', FOLDED, width, string.format('%.0f', limit))
    return false
  end
  local keys = {}
  for i = 3, #ARGV do
    for _, name in ipairs(names_below(entry)) do keys[#keys + 1] = root_of(ARGV[i]) .. name end
  end
  redis.call('UNLINK', unpack(keys))
  redis.call('HSET', FOLDED, width, string.format('%.0f', (entry + 1) * width))
  return true
end

local function below_10_s(entry)
  local names = { string.format('100:%.0f', entry) }
  for i = 0, 99 do names[#names + 1] = string.format('1:%.0f', entry * 100 + i) end
  return names
end

local function below_1000_s(entry)
  return { string.format('10000:%.0f', entry) }
end

local folded = redis.call('HMGET', FOLDED, 10000, 1000000)
local fine, coarse = tonumber(folded[1] or '0'), tonumber(folded[2] or '0')
if fold(10000, fine, now - tonumber(ARGV[1]), below_10_s) then return 1 end
if fold(1000000, coarse, math.min(now - tonumber(ARGV[2]), fine), below_1000_s) then return 1 end
return 0
