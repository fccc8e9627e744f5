#include "rotor/samples.h"

#include <sstream>
#include <stdexcept>
#include <string>

namespace rotor {

std::vector<Sample> ReadSamples(std::istream& in) {
  std::vector<Sample> samples;
  std::string line;
  std::getline(in, line);
  for (int number = 2; std::getline(in, line); ++number) {
    std::istringstream fields(line);
    Sample sample{};
    char comma = 0;
    if (!(fields >> sample.minute >> comma >> sample.rpm) || comma != ',') {
      throw std::runtime_error("line " + std::to_string(number) + " is not `minute,rpm`: " + line);
    }
    samples.push_back(sample);
  }
  return samples;
}

}  // namespace rotor
