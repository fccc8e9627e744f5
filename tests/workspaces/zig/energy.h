#ifndef ENERGY_H
#define ENERGY_H

#ifdef __cplusplus
extern "C" {
#endif
/* In joules: of a wheel of so many kg m2 at so many radians a second. */
double energy(double inertia, double speed);
#ifdef __cplusplus
}
#endif

#endif
