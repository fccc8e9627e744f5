#include <vector>

#include "energy.h"

double spin(const std::vector<double> &speeds) {
  double sum = 0;
  for (double speed : speeds) sum += energy(1, speed);
  return sum;
}
