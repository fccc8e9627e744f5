#pragma once

#include <vector>

#include "rotor/samples.h"

namespace rotor {

struct Wheel {
  double mass_kg;
  double radius_m;
};

struct Hour {
  int hour;
  double lowest_kwh;
  double highest_kwh;
};

// What a solid disc stores at this speed.
double StoredKwh(const Wheel& wheel, double rpm);

// The band in which the stored energy moved, hour by hour.
std::vector<Hour> Hours(const Wheel& wheel, const std::vector<Sample>& samples);

}  // namespace rotor
