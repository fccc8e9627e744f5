// Prints the band of stored energy of every wheel and hour: hourly WHEEL.csv...
#include <cstdio>
#include <exception>
#include <fstream>

#include "rotor/energy.h"
#include "rotor/samples.h"

int main(int argc, char** argv) {
  const rotor::Wheel wheel{/*mass_kg=*/1100.0, /*radius_m=*/0.45};
  try {
    for (int i = 1; i < argc; ++i) {
      std::ifstream file(argv[i]);
      if (!file) {
        std::fprintf(stderr, "hourly: cannot read %s\n", argv[i]);
        return 1;
      }
      for (const rotor::Hour& hour : rotor::Hours(wheel, rotor::ReadSamples(file))) {
        std::printf("%d %02d:00 %7.2f %7.2f\n", i, hour.hour, hour.lowest_kwh, hour.highest_kwh);
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "hourly: %s\n", error.what());
    return 1;
  }
  return 0;
}
