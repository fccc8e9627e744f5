#pragma once

#include <istream>
#include <vector>

namespace rotor {

struct Sample {
  int minute;
  double rpm;
};

// Reads `minute,rpm` lines after a heading. Throws std::runtime_error that names the first bad line.
std::vector<Sample> ReadSamples(std::istream& in);

}  // namespace rotor
