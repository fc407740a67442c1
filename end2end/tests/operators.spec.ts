import type { Page } from '@playwright/test';
import { expect, expectAllAccessible, section, test, told } from '../dashboard';
import { facts, owner, sql } from '../sandbox';

// The pages that the server renders alone: what was done, and how all customers are. Nothing of them needs JavaScript.

async function expectNothingWider(page: Page): Promise<void> {
  const before = page.viewportSize();
  await page.setViewportSize({ width: 360, height: 740 });
  expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(360);
  if (before) await page.setViewportSize(before);
}

async function expectNoScript(page: Page): Promise<void> {
  await expect(page.locator('script')).toHaveCount(0);
  expect(await page.locator('[style]').count()).toBe(0);
}

test.describe('a customer', () => {
  test.use({ customer: 8 });

  test('reads what was done to his backups, and gets there from his backups and back', async ({ page }) => {
    sql(`DELETE FROM backup_audit WHERE customer_id = 8;
      INSERT INTO backup_audit (at, customer_id, who, name, action, source, backup_type, job_id, address) VALUES
        (1795140000000, 8, 'operator', 'alice as root', 'backup', NULL, 'files', 3, NULL),
        (1795143600000, 8, 'customer', NULL, 'login_refused', NULL, NULL, NULL, '203.0.113.9'),
        (1795143700000, 8, 'customer', NULL, 'login', NULL, NULL, NULL, '203.0.113.7'),
        (1795143800000, 8, 'customer', NULL, 'backup', NULL, 'both', 4, '203.0.113.7'),
        (1795230000000, 8, 'customer', NULL, 'restore', 'manual', 'db', 5, '203.0.113.7'),
        (1795230100000, 8, 'customer', NULL, 'restore', 'pre-restore', 'db', 6, '203.0.113.7'),
        (1795230200000, 8, 'customer', NULL, 'cancel', NULL, 'both', 7, '203.0.113.7'),
        (1795230300000, 8, 'service', NULL, 'delete', 'manual', NULL, NULL, NULL),
        (1795230400000, 8, 'customer', NULL, 'delete', 'manual', NULL, NULL, '203.0.113.7')`);
    await page.goto('/backups');
    await section(page, 'Recent activity').getByRole('link', { name: 'All activity' }).click();
    await expect(page).toHaveURL(/\/activity$/);
    await expect(page.getByRole('heading', { level: 1 })).toHaveText('Activity');
    await expect(page.getByRole('main')).toContainText('Signed in from 203.0.113.7');
    await expect(page.getByRole('main')).not.toContainText('alice');
    expect(await told(page)).toMatchSnapshot('activity.aria.yml');
    await expectNoScript(page);
    await expectAllAccessible(page);
    await expectNothingWider(page);
    await page.getByRole('link', { name: 'All backups' }).click();
    await expect(page).toHaveURL(/\/backups$/);
  });
});

test.describe('without JavaScript', () => {
  test.use({ javaScriptEnabled: false });

  test('an operator logs in, sees what is wrong first, searches, and logs out', async ({ page }) => {
    await page.goto('/admin');
    await expect(page).toHaveURL(/\/admin\/login$/);
    await page.getByLabel('Name').fill(facts.operator.name);
    await page.getByLabel('Password').fill('not the password');
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('alert')).toHaveText('Name or password is not right. Please try again.');
    await page.getByLabel('Name').fill(facts.operator.name);
    await page.getByLabel('Password').fill(facts.operator.password);
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page).toHaveURL(/\/admin$/);
    await page.getByRole('searchbox', { name: 'Search' }).fill('shop-8');
    await page.getByRole('button', { name: 'Search' }).click();
    await expect(page.getByRole('heading', { level: 3 })).toHaveText([/shop-8/]);
    await page.getByRole('button', { name: 'Log out' }).click();
    await expect(page).toHaveURL(/\/admin\/login$/);
    await page.goto('/admin');
    await expect(page).toHaveURL(/\/admin\/login$/);
  });
});

test('the pages of the operators are accessible, and no wider than a phone', async ({ page }) => {
  await page.goto('/admin/login?problem=wrong');
  await expectNoScript(page);
  await expectAllAccessible(page);
  await expectNothingWider(page);
  expect(await told(page)).toMatchSnapshot('admin-login.aria.yml');
  await page.getByLabel('Name').fill(facts.operator.name);
  await page.getByLabel('Password').fill(facts.operator.password);
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.goto('/admin?q=shop-8');
  const well = section(page, 'Well').or(section(page, 'Needs a look'));
  await expect(well.getByRole('listitem').first()).toContainText(`Customer ${owner(8).id} on default`);
  expect(await told(page, page.getByRole('search'))).toMatchSnapshot('admin-search.aria.yml');
  await expectNoScript(page);
  await expectAllAccessible(page);
  await expectNothingWider(page);
  await page.goto('/admin?q=nobody-of-that-name');
  await expect(page.getByText('No customer matches that.')).toBeVisible();
  await expectAllAccessible(page);
});
