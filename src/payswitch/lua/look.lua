-- Look: checks whether Redis would accept a payment and let a worker take it. The first part that
-- looks sets the currency; nothing else changes. Its DEL counts as a write, so a replica, or a Redis
-- that can't write to its disk, refuses it.
--
-- ARGV: the caller's currency; 'info', or '' if another partition of this node is asked for it; the
--   rights to check, as pairs of a key ('' for none) and commands with spaces between
-- Returns: INFO ('' if it is not asked for, or not allowed), the length of the backlog, the currency of the payments in
--   here, the missing rights as pairs of a key and a command, and the partition's last mark ('' if none)

local ask = redis.acl_check_cmd
local OTHER_KEYS = { DEL = true, EXISTS = true, MGET = true, UNLINK = true, WATCH = true }

-- Two arguments suffice for most commands to find their key. Redis 8 raises an error if a command
-- takes another number, so this tries others.
local function may(command, key)
  if OTHER_KEYS[command] then return ask(command, key) end
  local container, subcommand = string.match(command, '(%a+)|(%a+)')
  if container then return ask(container, subcommand) end
  local args = { key == '' and '0' or key, '0', '0', '0' }
  for _, count in ipairs({ 2, 1, 3, 4, 0 }) do
    local takes_so_many, is_allowed = pcall(ask, command, unpack(args, 1, count))
    if takes_so_many then return is_allowed end
  end
  error('no number of arguments is right for ' .. command)
end

local missing = {}
if ask then
  for i = 3, #ARGV, 2 do
    for command in string.gmatch(ARGV[i + 1], '%S+') do
      if not may(command, ARGV[i]) then
        missing[#missing + 1] = ARGV[i]
        missing[#missing + 1] = command
      end
    end
  end
end
if #missing > 0 then return { '', 0, ARGV[1], missing, '' } end

local info = {}
if ARGV[2] ~= '' and (not ask or ask('INFO', 'server')) then
  for _, section in ipairs({ 'server', 'memory', 'replication', 'cluster' }) do
    info[#info + 1] = redis.call('INFO', section)
  end
end
write_even_out_of_memory()
demand('string', CURRENCY)
local currency = redis.call('GET', CURRENCY)
if not currency then
  currency = ARGV[1]
  redis.call('SET', CURRENCY, currency)
end
local mark = TAG ~= '' and redis.call('GET', 'payments:confirmed' .. SUFFIX) or ''
return { table.concat(info), size_of(OPEN), currency, missing, mark }
