#include "rotor/energy.h"

#include <cmath>
#include <cstdio>

namespace {

int failures = 0;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  ++failures;
}

}  // namespace

int main() {
  const rotor::Wheel wheel{1000.0, 0.5};
  Check(rotor::StoredKwh(wheel, 0) == 0, "a wheel at rest stores nothing");
  const double slow = rotor::StoredKwh(wheel, 5000);
  const double fast = rotor::StoredKwh(wheel, 10000);
  Check(std::abs(fast / slow - 4.0) < 1e-9, "twice the speed stores four times the energy");

  const auto hours = rotor::Hours(wheel, {{0, 5000}, {59, 10000}, {60, 7000}});
  Check(hours.size() == 2, "two hours were sampled");
  Check(hours[0].lowest_kwh == slow && hours[0].highest_kwh == fast, "an hour has its lowest and highest");
  Check(hours[1].hour == 1, "hours are in order");
  return failures == 0 ? 0 : 1;
}
