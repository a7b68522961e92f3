#include "pkg/longhorn/file_path.h"

#include <gtest/gtest.h>

namespace bim::longhorn {
namespace {

using base::Code;

const DiskRoots kRoots{{"/mnt/disk 1", "/data/"}};

TEST(FilePathTest, WhatTheLayoutHas) {
  for (const std::string root : {"/data", "/mnt/disk 1"}) {
    const auto image =
        ParseImagePath(root + "/backing-images/a.b-c_1-u/backing", kRoots);
    ASSERT_TRUE(image.ok()) << image.status().ToString();
    EXPECT_EQ(*image, "a.b-c_1-u");
    const auto tmp = ParseTmpPath(root + "/tmp/a-u", kRoots);
    ASSERT_TRUE(tmp.ok());
    EXPECT_EQ(*tmp, "a-u");
  }
}

TEST(FilePathTest, EverythingElseIsRefused) {
  for (const std::string path : {"",
                                 "/",
                                 "backing",
                                 "/data",
                                 "/data/",
                                 "/etc/passwd",
                                 "data/backing-images/a-u/backing",
                                 "/data/backing-images/a-u/backing/",
                                 "/data/backing-images/a-u/backing.cfg",
                                 "/data/backing-images/a-u/backing.tmp",
                                 "/data/backing-images/a-u/",
                                 "/data/backing-images/a-u",
                                 "/data/backing-images//backing",
                                 "/data/backing-images/backing",
                                 "/data/backing-images/../a-u/backing",
                                 "/data/backing-images/a-u/../b-u/backing",
                                 "/data/backing-images/a-u/./backing",
                                 "/data//backing-images/a-u/backing",
                                 "//data/backing-images/a-u/backing",
                                 "/data/backing-images/a-u//backing",
                                 "/data/backing-images/..-u/backing",
                                 "/data/backing-images/.-u/backing",
                                 "/data/backing-images/-u/backing",
                                 "/data/backing-images/a..b-u/backing",
                                 "/data/backing-images/noseparator/backing",
                                 "/data/backing-images/a%2Fb-u/backing",
                                 "/data/backing-images/a\nb-u/backing",
                                 "/data/backing-images/a b-u/backing",
                                 "/data/../data/backing-images/a-u/backing",
                                 "/datax/backing-images/a-u/backing",
                                 "/mnt/disk 1x/backing-images/a-u/backing",
                                 "/mnt/disk+1/backing-images/a-u/backing",
                                 "/data/longhorn-disk.cfg",
                                 "/data/.bim/owner",
                                 "/data/tmp/a-u"}) {
    const auto parsed = ParseImagePath(path, kRoots);
    EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument) << path;
  }
  EXPECT_FALSE(
      ParseImagePath(std::string("/data/backing-images/a-u\0/backing", 34),
                     kRoots)
          .ok());
  EXPECT_FALSE(ParseImagePath("/data/backing-images/" + std::string(130, 'a') +
                                  "-u/backing",
                              kRoots)
                   .ok());
  for (const std::string path :
       {"/data/tmp/", "/data/tmp/a", "/data/tmp/a-u/b", "/data/tmp/../a-u",
        "/data/tmp/a-u/", "/data/tmp/-u", "/data/backing-images/a-u/backing"}) {
    EXPECT_FALSE(ParseTmpPath(path, kRoots).ok()) << path;
  }
}

TEST(FilePathTest, WhoseDirectory) {
  const auto key = KeyOfDirectory("a-b-c", "b-c");
  ASSERT_TRUE(key.ok());
  EXPECT_EQ(key->name, "a");
  EXPECT_EQ(KeyOfDirectory("a-b-c", "c")->name, "a-b");
  for (const char* uuid : {"", "x", "a-b-c", "../c", "bc"}) {
    EXPECT_EQ(KeyOfDirectory("a-b-c", uuid).status().code(),
              Code::kInvalidArgument)
        << uuid;
  }
}

}  // namespace
}  // namespace bim::longhorn
