-- Forget: removes the keys of earlier generations, and only those, a part of the key space at a time,
-- so that Redis serves other clients in between. SCAN also shows the keys of the node's other
-- partitions: those stay.
--
-- ARGV: cursor, how many keys to look at
-- Returns: the next cursor ('0' at the end), how many keys were removed

write_even_out_of_memory()
local current = generation()
local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local old = {}
local RECORD = 'payment:' .. TAG

for _, key in ipairs(page[2]) do
  if string.sub(key, 1, #RECORD) == RECORD then
    local known = redis.pcall('HMGET', key, 'generation', 'state')
    if not known.err and known[1] and known[1] ~= current then
      old[#old + 1] = key
      if known[2] ~= 'settled' then
        local id = string.sub(key, #'payment:' + 1)
        old[#old + 1] = 'arq:job:' .. id
        old[#old + 1] = 'arq:in-progress:' .. id
        old[#old + 1] = 'arq:retry:' .. id
      end
    end
  elseif string.sub(key, 1, #LEDGER) == LEDGER then
    local of = string.match(key, '^[^:]*:(%d+):', #LEDGER + 1)
    if of and of ~= current then old[#old + 1] = key end
  end
end

local removed = 0
for i = 1, #old, 1000 do
  removed = removed + redis.call('UNLINK', unpack(old, i, math.min(i + 999, #old)))
end
return { page[1], removed }
