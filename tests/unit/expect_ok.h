// A status that must be good; what it says is shown when it is not.
#pragma once

#include <gtest/gtest.h>

#include "pkg/base/status.h"

#define BIM_EXPECT_OK(expr)                \
  do {                                     \
    const ::bim::base::Status s_ = (expr); \
    EXPECT_TRUE(s_.ok()) << s_.ToString(); \
  } while (false)
#define BIM_ASSERT_OK(expr)                \
  do {                                     \
    const ::bim::base::Status s_ = (expr); \
    ASSERT_TRUE(s_.ok()) << s_.ToString(); \
  } while (false)
