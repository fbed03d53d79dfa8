-- Records: what a partition knows of some payments, in one consistent reading.
--
-- ARGV: the payments' ids
-- Returns: the generation, then for each payment the fields and values of its record, or nil if its key
--   holds something else

local answer = { generation() }
for i = 1, #ARGV do
  local found = redis.pcall('HGETALL', 'payment:' .. ARGV[i])
  if found.err and not string.find(found.err, 'WRONGTYPE', 1, true)
    and not string.find(found.err, 'wrong kind', 1, true) then
    return found
  end
  answer[i + 1] = not found.err and found
end
return answer
