// What a run is worth, by the challenge's rules: score.py for k6, and for node, which tests it.
// Money is counted in whole units of a millionth, so that nothing is rounded.

const FINE_PERCENT = 35;

export function inconsistencies(ours, theirs, differencesCancel) {
  const byDefault = ours.default.totalRequests - theirs.default.totalRequests;
  const byFallback = ours.fallback.totalRequests - theirs.fallback.totalRequests;
  return differencesCancel
    ? Math.abs(byDefault + byFallback)
    : Math.abs(byDefault) + Math.abs(byFallback);
}

export function score(scenario, { processed, accepted, inconsistencies, p99 }) {
  const names = Object.keys(scenario.feePercent);
  const cents = (name) => Math.round(processed[name].totalAmount * 100);
  const sum = (each) => names.reduce((total, name) => total + each(name), 0);
  const count = sum((name) => processed[name].totalRequests);
  const p99Ms = halfUp(p99);
  const bonusPercent = Math.max(0, Math.round(halfUp((11 - p99Ms) * 0.02) * 100));
  const finePercent = inconsistencies > 0 ? FINE_PERCENT : 0;
  const net = sum((name) => cents(name) * (100 - scenario.feePercent[name]));
  const lag = accepted - count;
  return {
    amount: sum(cents) / 100,
    fees: Object.fromEntries(
      names.map((name) => [name, (cents(name) * scenario.feePercent[name]) / 10000]),
    ),
    net: net / 10000,
    p99: p99Ms,
    bonus: bonusPercent / 100,
    fine: finePercent / 100,
    lag,
    disqualified: lag < 0,
    score: lag < 0 ? 0 : (net * (100 + bonusPercent - finePercent)) / 1000000,
  };
}

// Two decimals of a number's shortest notation, halves away from zero.
export function halfUp(value) {
  const text = String(Math.abs(value));
  if (text.includes('e-')) return 0;
  const [whole, decimals = ''] = text.split('.');
  const up = decimals.length > 2 && decimals[2] >= '5' ? 1 : 0;
  const hundredths = Number(whole + decimals.slice(0, 2).padEnd(2, '0')) + up;
  return (Math.sign(value) * hundredths) / 100;
}
