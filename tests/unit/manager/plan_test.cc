#include "pkg/manager/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <sstream>

namespace bim::manager {
namespace {

using enum CopyState;

constexpr std::array kStates = {kPending, kStarting, kInProgress,
                                kReady,   kFailed,   kUnknown};
const TimePoint kNow{std::chrono::hours(1)};
const TimePoint kPast = kNow - std::chrono::seconds(1);
const TimePoint kFuture = kNow + std::chrono::seconds(1);

std::vector<CopyView> AllViews() {
  std::vector<CopyView> views;
  for (CopyState state : kStates) {
    for (Step running : {Step::kNone, Step::kScan, Step::kDownload, Step::kCopy,
                         Step::kVerify}) {
      for (int flags = 0; flags < 16; ++flags) {
        for (const std::optional<TimePoint>& due :
             {std::optional<TimePoint>(), std::optional(kPast),
              std::optional(kNow), std::optional(kFuture)}) {
          views.push_back({state, running, (flags & 1) != 0, (flags & 2) != 0,
                           (flags & 4) != 0, (flags & 8) != 0, due});
        }
      }
    }
  }
  return views;
}

// What the manager can come to.
bool Sane(const CopyView& copy) {
  if (copy.damaged && (copy.state != kFailed || !copy.permanent)) return false;
  if (copy.permanent && copy.state != kFailed) return false;
  if (copy.found_file && copy.state != kPending && copy.state != kStarting &&
      copy.state != kInProgress) {
    return false;
  }
  if (!copy.disk_usable && copy.running == Step::kNone &&
      copy.state != kUnknown) {
    return false;
  }
  if (copy.running != Step::kNone && copy.due) return false;
  switch (copy.running) {
    case Step::kNone:
      // Between two quick tries there is a time for the next.
      return (copy.state != kStarting && copy.state != kInProgress) || copy.due;
    case Step::kVerify:
      return copy.state == kReady || copy.state == kUnknown;
    default:
      return copy.state == kStarting || copy.state == kInProgress;
  }
}

bool IsJob(Step step) { return step != Step::kNone && step != Step::kWait; }
bool IsDue(const CopyView& copy) { return !copy.due || *copy.due <= kNow; }

std::string Show(const std::vector<CopyView>& copies,
                 const std::vector<Step>& steps) {
  std::ostringstream out;
  for (size_t i = 0; i < copies.size(); ++i) {
    const CopyView& copy = copies[i];
    out << "\n  " << CopyStateName(copy.state) << " running "
        << static_cast<int>(copy.running) << (copy.disk_usable ? "" : " lost")
        << (copy.found_file ? " found" : "") << (copy.damaged ? " damaged" : "")
        << (copy.permanent ? " permanent" : "")
        << (copy.due ? IsDue(copy) ? " due" : " later" : "") << " -> "
        << static_cast<int>(steps[i]);
  }
  return out.str();
}

// Calls `check` with every combination of one and two copies out of `views`.
template <typename Check>
void ForPairs(const std::vector<CopyView>& views, Check check) {
  for (const CopyView& a : views) {
    check(std::vector<CopyView>{a});
    for (const CopyView& b : views) check(std::vector<CopyView>{a, b});
    if (::testing::Test::HasFailure()) return;
  }
}

std::vector<CopyView> SaneViews() {
  std::vector<CopyView> views = AllViews();
  std::erase_if(views, [](const CopyView& copy) { return !Sane(copy); });
  return views;
}

TEST(PlanTest, NoCopies) { EXPECT_TRUE(Plan({}, kNow).empty()); }

TEST(PlanTest, WhateverTheViewsNoCopyIsTouchedThatMustNotBe) {
  std::vector<CopyView> views = AllViews();
  // kNow and kPast are one to the plan, so half of the pairs will do.
  std::erase_if(views, [](const CopyView& copy) { return copy.due == kPast; });
  ForPairs(views, [](const std::vector<CopyView>& copies) {
    const std::vector<Step> steps = Plan(copies, kNow);
    ASSERT_EQ(steps.size(), copies.size());
    for (size_t i = 0; i < copies.size(); ++i) {
      const CopyView& copy = copies[i];
      if (copy.running != Step::kNone || !copy.disk_usable) {
        ASSERT_EQ(steps[i], Step::kNone) << Show(copies, steps);
      }
      if (copy.damaged) {
        ASSERT_TRUE(steps[i] != Step::kDownload && steps[i] != Step::kCopy)
            << Show(copies, steps);
      }
      if (copy.permanent) {
        ASSERT_NE(steps[i], Step::kDownload) << Show(copies, steps);
      }
      if (copy.state == kReady && !copy.found_file) {
        ASSERT_EQ(steps[i], Step::kNone) << Show(copies, steps);
      }
      if (steps[i] == Step::kCopy) {
        ASSERT_TRUE(std::any_of(copies.begin(), copies.end(),
                                [&](const CopyView& other) {
                                  return &other != &copy && other.disk_usable &&
                                         other.state == kReady;
                                }))
            << Show(copies, steps);
      }
      if (steps[i] == Step::kVerify) {
        ASSERT_EQ(copy.state, kUnknown) << Show(copies, steps);
      }
    }
  });
}

TEST(PlanTest, NothingBeginsBeforeItsTime) {
  ForPairs(SaneViews(), [](const std::vector<CopyView>& copies) {
    const std::vector<Step> steps = Plan(copies, kNow);
    for (size_t i = 0; i < copies.size(); ++i) {
      if (!IsDue(copies[i])) {
        ASSERT_EQ(steps[i], Step::kNone) << Show(copies, steps);
      }
    }
  });
}

void ExpectOneDownload(const std::vector<CopyView>& copies) {
  const std::vector<Step> steps = Plan(copies, kNow);
  const auto begun = std::count(steps.begin(), steps.end(), Step::kDownload);
  const auto running =
      std::count_if(copies.begin(), copies.end(), [](const CopyView& copy) {
        return copy.disk_usable && copy.running == Step::kDownload;
      });
  ASSERT_LE(begun, 1) << Show(copies, steps);
  ASSERT_TRUE(begun == 0 || running == 0) << Show(copies, steps);
  const bool ready =
      std::any_of(copies.begin(), copies.end(), [](const CopyView& copy) {
        return copy.disk_usable && copy.state == kReady;
      });
  ASSERT_TRUE(!ready || begun == 0)
      << "what is here is not fetched" << Show(copies, steps);
}

TEST(PlanTest, AtMostOneDownloadOfTwoCopies) {
  ForPairs(SaneViews(), ExpectOneDownload);
}

TEST(PlanTest, AtMostOneDownloadOfThreeCopies) {
  std::vector<CopyView> views = SaneViews();
  std::erase_if(views, [](const CopyView& copy) {
    return copy.due == kPast || copy.running == Step::kScan ||
           !copy.disk_usable;
  });
  for (const CopyView& a : views) {
    for (const CopyView& b : views) {
      for (const CopyView& c : views) ExpectOneDownload({a, b, c});
      if (HasFailure()) return;
    }
  }
}

TEST(PlanTest, ACopyAloneIsNeverForgotten) {
  for (const CopyView& copy : SaneViews()) {
    const Step step = Plan({copy}, kNow)[0];
    ASSERT_NE(step, Step::kWait) << Show({copy}, {step});
    ASSERT_NE(step, Step::kCopy) << Show({copy}, {step});
    if (copy.running != Step::kNone || !copy.disk_usable || copy.damaged ||
        copy.permanent || copy.state == kReady || !IsDue(copy)) {
      continue;
    }
    ASSERT_TRUE(IsJob(step)) << Show({copy}, {step});
    ASSERT_EQ(step, copy.found_file          ? Step::kScan
                    : copy.state == kUnknown ? Step::kVerify
                                             : Step::kDownload);
  }
}

TEST(PlanTest, WhoWaitsWaitsForSomething) {
  ForPairs(SaneViews(), [](const std::vector<CopyView>& copies) {
    const std::vector<Step> steps = Plan(copies, kNow);
    for (size_t i = 0; i < copies.size(); ++i) {
      if (steps[i] != Step::kWait) continue;
      bool something = false;
      for (size_t j = 0; j < copies.size(); ++j) {
        if (j == i) continue;
        // The end of a job, also of one whose disk is gone, is looked at.
        something = something || IsJob(steps[j]) ||
                    copies[j].running != Step::kNone ||
                    (copies[j].disk_usable && !IsDue(copies[j]));
      }
      ASSERT_TRUE(something) << Show(copies, steps);
    }
  });
}

TEST(PlanTest, AReadyCopyFillsTheOthersAtOnce) {
  CopyView ready{kReady};
  CopyView missing{kPending};
  CopyView failed{kFailed};
  failed.permanent = true;  // of the source: it is not needed
  EXPECT_EQ(Plan({missing, ready, failed}, kNow),
            (std::vector<Step>{Step::kCopy, Step::kNone, Step::kCopy}));
  ready.disk_usable = false;
  EXPECT_EQ(Plan({missing, ready, failed}, kNow),
            (std::vector<Step>{Step::kDownload, Step::kNone, Step::kNone}));
}

TEST(PlanTest, TheFirstDownloadsTheOthersWait) {
  const CopyView pending{kPending};
  EXPECT_EQ(Plan({pending, pending, pending}, kNow),
            (std::vector<Step>{Step::kDownload, Step::kWait, Step::kWait}));
}

TEST(AggregateTest, ExhaustiveUpToThree) {
  // "failed" when one failed, else in this order.
  const std::array order = {kFailed,   kUnknown, kInProgress,
                            kStarting, kPending, kReady};
  const auto expected = [&](const std::vector<CopyState>& states) {
    return *std::find_if(order.begin(), order.end(), [&](CopyState state) {
      return std::count(states.begin(), states.end(), state) > 0;
    });
  };
  EXPECT_EQ(Aggregate({}), kPending);
  for (CopyState a : kStates) {
    EXPECT_EQ(Aggregate({a}), a);
    for (CopyState b : kStates) {
      for (CopyState c : kStates) {
        const std::vector<CopyState> states = {a, b, c};
        EXPECT_EQ(Aggregate(states), expected(states));
      }
    }
  }
}

TEST(MayFollowTest, IsTheTableOfTheContract) {
  const std::vector<std::pair<CopyState, std::vector<CopyState>>> table = {
      {kPending, {kStarting, kReady, kFailed, kUnknown}},
      {kStarting, {kInProgress, kReady, kFailed, kPending, kUnknown}},
      {kInProgress, {kReady, kFailed, kPending, kUnknown}},
      {kReady, {kUnknown, kFailed, kPending}},
      {kFailed, {kPending, kStarting, kUnknown, kReady}},
      {kUnknown, {kReady, kFailed, kPending}},
  };
  for (const auto& [from, targets] : table) {
    for (CopyState to : kStates) {
      const bool may =
          from == to || std::count(targets.begin(), targets.end(), to) > 0;
      EXPECT_EQ(MayFollow(from, to), may)
          << CopyStateName(from) << " -> " << CopyStateName(to);
    }
  }
}

TEST(MayFollowTest, EveryBegunStepMayFollow) {
  // What the manager sets when it begins a step is allowed from there.
  for (const CopyView& copy : SaneViews()) {
    for (const CopyView& other : SaneViews()) {
      const Step step = Plan({copy, other}, kNow)[0];
      if (step == Step::kWait) {
        ASSERT_TRUE(MayFollow(copy.state, kPending));
      }
      if (step == Step::kScan || step == Step::kDownload ||
          step == Step::kCopy) {
        ASSERT_TRUE(copy.state == kInProgress ||
                    MayFollow(copy.state, kStarting))
            << Show({copy}, {step});
      }
    }
  }
}

// --- uploads

TEST(PlanTest, WithAnUploadEverythingElseStaysAsItIs) {
  ForPairs(SaneViews(), [](const std::vector<CopyView>& copies) {
    const std::vector<Step> steps = Plan(copies, kNow);
    const std::vector<Step> uploads = Plan(copies, kNow, true);
    ASSERT_EQ(uploads.size(), copies.size());
    for (size_t i = 0; i < copies.size(); ++i) {
      // Where there would be a download somebody may bring the bytes.
      ASSERT_EQ(uploads[i],
                steps[i] == Step::kDownload ? Step::kUpload : steps[i])
          << Show(copies, uploads);
      ASSERT_NE(steps[i], Step::kUpload) << Show(copies, steps);
    }
    ASSERT_LE(std::count(uploads.begin(), uploads.end(), Step::kUpload), 1)
        << Show(copies, uploads);
  });
}

TEST(PlanTest, WhileOneIsUploadedTheOthersWait) {
  CopyView uploading;
  uploading.state = kStarting;
  for (const CopyState state : {kStarting, kInProgress}) {
    uploading.state = state;
    uploading.running = Step::kUpload;
    for (const bool upload : {false, true}) {
      for (const CopyView& other : SaneViews()) {
        if (other.running != Step::kNone) continue;
        const std::vector<CopyView> copies{uploading, other};
        const std::vector<Step> steps = Plan(copies, kNow, upload);
        ASSERT_EQ(steps[0], Step::kNone) << Show(copies, steps);
        ASSERT_TRUE(steps[1] != Step::kDownload && steps[1] != Step::kUpload)
            << Show(copies, steps);
      }
      // What lies there needs no source.
      CopyView found;
      found.found_file = true;
      EXPECT_EQ(Plan({uploading, found}, kNow, upload)[1], Step::kScan);
      EXPECT_EQ(Plan({uploading, CopyView()}, kNow, upload)[1], Step::kWait);
    }
  }
}

TEST(PlanTest, AnUploadGoesOnWhereItsBytesAre) {
  CopyView partial;
  partial.partial = true;
  for (size_t at = 0; at < 3; ++at) {
    std::vector<CopyView> copies(3);
    copies[at] = partial;
    const std::vector<Step> steps = Plan(copies, kNow, true);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(steps[i], i == at ? Step::kUpload : Step::kWait);
    }
  }
}

TEST(PlanTest, AReadyCopyNeedsNoUpload) {
  CopyView ready;
  ready.state = kReady;
  EXPECT_EQ(Plan({CopyView(), ready}, kNow, true),
            (std::vector<Step>{Step::kCopy, Step::kNone}));
  ready.disk_usable = false;
  EXPECT_EQ(Plan({CopyView(), ready}, kNow, true),
            (std::vector<Step>{Step::kUpload, Step::kNone}));
}

TEST(PlanTest, AFailedUploadWaitsForItsTime) {
  CopyView failed;
  failed.state = kFailed;
  failed.due = kFuture;
  EXPECT_EQ(Plan({failed}, kNow, true)[0], Step::kNone);
  failed.due = kNow;
  EXPECT_EQ(Plan({failed}, kNow, true)[0], Step::kUpload);
  failed.permanent = true;
  EXPECT_EQ(Plan({failed}, kNow, true)[0], Step::kNone);
}

TEST(PlanTest, ADirectedCopyIsTriedOnce) {
  for (const CopyState state :
       {kPending, kStarting, kInProgress, kReady, kFailed, kUnknown}) {
    for (int bits = 0; bits < 128; ++bits) {
      CopyView copy;
      copy.state = state;
      copy.disk_usable = bits & 1;
      copy.found_file = bits & 2;
      copy.damaged = bits & 4;
      copy.permanent = bits & 8;
      if (bits & 16) copy.due = kFuture;
      if (bits & 32) copy.running = Step::kScan;
      const bool source = bits & 64;
      const Step step = PlanDirected(copy, kNow, source, false);
      Step expected = Step::kNone;
      if (copy.disk_usable && !copy.due && copy.running == Step::kNone) {
        if (copy.found_file) {
          expected = Step::kScan;
        } else if (!copy.damaged && !copy.permanent) {
          if (state == kUnknown) expected = Step::kVerify;
          if (source && (state == kPending || state == kStarting ||
                         state == kInProgress)) {
            expected = Step::kDownload;
          }
        }
      }
      EXPECT_EQ(step, expected) << CopyStateName(state) << " " << bits;
    }
  }
  EXPECT_EQ(PlanDirected(CopyView(), kNow, true, true), Step::kUpload);
}

TEST(CopyStateTest, Names) {
  EXPECT_EQ(CopyStateName(kPending), "pending");
  EXPECT_EQ(CopyStateName(kStarting), "starting");
  EXPECT_EQ(CopyStateName(kInProgress), "in-progress");
  EXPECT_EQ(CopyStateName(kReady), "ready");
  EXPECT_EQ(CopyStateName(kFailed), "failed");
  EXPECT_EQ(CopyStateName(kUnknown), "unknown");
}

}  // namespace
}  // namespace bim::manager
