#include "rotor/energy.h"

#include <algorithm>
#include <map>

namespace rotor {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kJoulesPerKwh = 3.6e6;

}  // namespace

double StoredKwh(const Wheel& wheel, double rpm) {
  const double inertia = 0.5 * wheel.mass_kg * wheel.radius_m * wheel.radius_m;
  const double angular_speed = rpm * 2.0 * kPi / 60.0;
  return 0.5 * inertia * angular_speed * angular_speed / kJoulesPerKwh;
}

std::vector<Hour> Hours(const Wheel& wheel, const std::vector<Sample>& samples) {
  std::map<int, Hour> by_hour;
  for (const Sample& sample : samples) {
    const double kwh = StoredKwh(wheel, sample.rpm);
    const int number = sample.minute / 60;
    auto [entry, is_new] = by_hour.try_emplace(number, Hour{number, kwh, kwh});
    entry->second.lowest_kwh = std::min(entry->second.lowest_kwh, kwh);
    entry->second.highest_kwh = std::max(entry->second.highest_kwh, kwh);
  }
  std::vector<Hour> hours;
  for (const auto& [number, hour] : by_hour) hours.push_back(hour);
  return hours;
}

}  // namespace rotor
