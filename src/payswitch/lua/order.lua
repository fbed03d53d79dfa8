-- Order: writes an operator's order for as long as it holds, even out of memory.
--
-- ARGV: the order's name, the order (JSON), its life (ms, 0 for no end); for the audit trail: act ('' for
--   none), who, its object, why

demand('stream', AUDIT)
write_even_out_of_memory()
local key = ARGV[1] .. SUFFIX
if tonumber(ARGV[3]) > 0 then
  redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
else
  redis.call('SET', key, ARGV[2])
end
if ARGV[4] ~= '' then record_act(unpack(ARGV, 4, 7)) end
