-- Forget: removes the keys of earlier generations, and only those, a part of the key space at a time,
-- so that Redis serves other clients in between.
--
-- ARGV: cursor, how many keys to look at
-- Returns: the next cursor ('0' at the end), how many keys were removed

write_even_out_of_memory()
local current = generation()
local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local old = {}

for _, key in ipairs(page[2]) do
  if string.sub(key, 1, 8) == 'payment:' then
    local known = redis.pcall('HMGET', key, 'generation', 'state')
    if not known.err and known[1] and known[1] ~= current then
      old[#old + 1] = key
      if known[2] ~= 'settled' then
        local id = string.sub(key, 9)
        old[#old + 1] = 'arq:job:' .. id
        old[#old + 1] = 'arq:in-progress:' .. id
        old[#old + 1] = 'arq:retry:' .. id
      end
    end
  elseif string.sub(key, 1, 7) == 'ledger:' then
    local of = string.match(key, '^ledger:[^:]*:(%d+):')
    if of and of ~= current then old[#old + 1] = key end
  end
end

local removed = 0
for i = 1, #old, 1000 do
  removed = removed + redis.call('UNLINK', unpack(old, i, math.min(i + 999, #old)))
end
return { page[1], removed }
